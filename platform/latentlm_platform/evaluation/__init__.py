"""What a trained model is worth: generation and its scores, exposure, sampling."""
