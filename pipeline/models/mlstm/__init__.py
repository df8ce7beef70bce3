"""The multiplicative LSTM. These files also travel beside an export, so they import only torch and
transformers."""
