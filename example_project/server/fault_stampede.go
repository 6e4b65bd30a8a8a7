package main

// Done: a link whose upstream is gone is closed, and dialed again "to be back as soon as possible": at once, until
// that succeeds.
//
// Seen: while the upstream restarts, each link is refused thousands of times a second; a dial parks and is woken,
// productively, by the refusal. When the upstream is back, all of its clients are there in the same millisecond.
//
// Fix: wait before each dial, longer after each failure, and for a random time, as backOff does.
func dialAtOnce(int) {}
