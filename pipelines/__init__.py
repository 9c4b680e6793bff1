"""What runs on Ray, in which order. Jobs parse and call; the library computes; these modules join the two."""
