"""From headers and labels to which slice goes where."""
