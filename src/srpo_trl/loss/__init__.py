"""The mathematics of the loss: pure functions of tensors, and the operators (`ops`) that compute them."""
