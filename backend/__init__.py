"""The service: REST in front of the one database. It never imports torch or numpy."""
