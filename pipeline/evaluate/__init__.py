"""What an exported model is worth: held-out loss, features for sentiment, generated text."""
