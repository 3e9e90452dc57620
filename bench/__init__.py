"""Each script prints one figure a line, beside a peer or a physical limit measured in the same minute."""
