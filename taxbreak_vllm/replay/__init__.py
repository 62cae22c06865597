"""Phase 2 (methodology sections 6 and 7): floors and isolated replay, in processes of its own; needs torch."""
