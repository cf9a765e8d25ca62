"""Other frameworks' weights in and out, without needing those frameworks."""
