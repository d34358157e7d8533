"""Studies of many searches or of many architectures' scores."""
