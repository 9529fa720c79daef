"""What is known of a mixture's samples, from the draw to the backward pass and the score term."""
