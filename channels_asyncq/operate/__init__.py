"""Answers for people who run a site: whether its servers can be used, and what they hold."""
