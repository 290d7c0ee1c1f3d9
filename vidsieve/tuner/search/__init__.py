"""The search itself: trials by ask and tell, and when it stops."""
