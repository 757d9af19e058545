"""A checkpoint of any layout into one of another, without a lost bit and in bounded memory."""
