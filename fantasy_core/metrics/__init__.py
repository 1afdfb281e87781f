"""Measures of a talking video that need no paper's weights, or name those that they do need."""
