"""What ``benchmarks.beside_tflite_converters`` runs in processes of their own, some in other environments."""
