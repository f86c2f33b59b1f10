"""The reference models: definitions, data, tasks, training and trained weights."""

REFERENCES = ("gan", "cnn", "rnn", "rnn-gru")
EDGES = ("gan-edge", "cnn-edge", "rnn-edge")  # what the recipes of these names made of them
SHIPPED = (*REFERENCES, *EDGES)
