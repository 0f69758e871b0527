"""Methods compared on one data set: cells of method x seed, their statistics and their pages."""
