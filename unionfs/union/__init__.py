"""What a merged tree is: lookup, listing, copy-up, whiteouts, rename."""
