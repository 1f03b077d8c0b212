"""HTML pages that need nothing but themselves: shared by `softlabels report` and `softtrain report`."""
