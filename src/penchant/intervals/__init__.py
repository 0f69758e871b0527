"""What 95 % intervals are made of: quantiles of distributions, and the interval of a share."""
