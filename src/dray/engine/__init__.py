"""What dockerd does: containers, execs, images, events, supervision."""
