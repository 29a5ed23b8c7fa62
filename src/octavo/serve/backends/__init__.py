"""What answers: a model of this process, in a batch or as an agent; or a server further on."""
