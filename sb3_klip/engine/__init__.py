"""The fast paths: the same arithmetic as the algorithms', with less Python around it."""
