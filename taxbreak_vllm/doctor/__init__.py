"""What stops or falsifies measuring: a host's files, environment and servers in, findings with a remedy each out."""
