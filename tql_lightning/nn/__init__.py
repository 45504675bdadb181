"""Networks: attention with entropy, its temperature, the critics and the flow policy."""
