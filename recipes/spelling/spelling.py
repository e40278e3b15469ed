"""How the two parts work together, and how good their answer is. Needs nothing but numpy."""

import numpy as np

START, LONGEST = 0, 20


def run(sessions, samples):
    """Spells one word after another, greedily.

    ``sessions`` holds a running model for every part of the recipe: the float original, or what was made
    of it. ``samples`` gives the arrays of one sample at a time, without the label. For every sample one
    mapping of outputs is yielded.
    """
    for sample in samples:
        hidden = sessions["encoder"].run({"chars": sample["chars"][None]})["hidden"]
        token = np.array([[START]], np.int64)
        phonemes = []
        for _ in range(min(len(sample["chars"]), LONGEST)):
            outputs = sessions["decoder"].run({"token": token, "hidden": hidden})
            hidden = outputs["hidden_out"]
            token = outputs["logits"].argmax(1)[:, None]
            phonemes.append(int(token[0, 0]))
        yield {"phonemes": np.array(phonemes)}


def word_accuracy(outputs, sample):
    """1 where every phoneme of the word is right; the metric is the mean over all words."""
    return float(np.array_equal(outputs["phonemes"], sample["label"]))


word_accuracy.unit = "%"  # scores are shares of 1, and a drop is given in percentage points
