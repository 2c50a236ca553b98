"""Networks: drivers, addresses, sandboxes, published ports."""
