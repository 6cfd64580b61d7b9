"""One stage of the network under calibration: its streamed inputs, what is observed of it, what it hands on."""
