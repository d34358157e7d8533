"""Studies: what runs many searches or scores many architectures."""
