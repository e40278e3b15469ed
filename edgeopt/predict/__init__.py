"""What a model will cost on a device: latency and peak memory, predicted from the device's profile."""

from edgeopt.predict.prediction import Prediction, RooflinePredictor, coverage, peak_memory, predict

__all__ = ["Prediction", "RooflinePredictor", "coverage", "peak_memory", "predict"]
