no weights: only shows which backend Triton asks for
