"""What serves fields and samples: precision, slices, quadrature, the autograd Functions."""
