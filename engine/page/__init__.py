"""A web page with a slider for every attribute: a client of the server, and itself a small web server."""
