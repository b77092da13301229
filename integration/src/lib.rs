//! The harness that starts the built server on real Docker and talks to it as clients do.
