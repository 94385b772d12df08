"""What comes and goes over HTTP: routes, bodies and answers, their description."""
