"""What a request has reached: an append-only log of events, webhooks that deliver them, and the order to cancel."""
