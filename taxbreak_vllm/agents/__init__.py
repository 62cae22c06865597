"""Questions of an agent in, by the Model Context Protocol; answers of bounded size out, as JSON."""
