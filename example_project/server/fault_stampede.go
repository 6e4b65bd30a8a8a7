package main

// Done: a link whose upstream is gone is closed and dialed again without a pause "to be back as soon as possible",
// until that succeeds.
//
// Seen: while the upstream restarts, each link is refused thousands of times a second; each dial parks, and the
// refusal wakes it, productively. When the upstream is back, all of its clients arrive in the same millisecond.
//
// Fix: wait before each dial, longer after each failure, and for a random time, as backOff does.
func dialAtOnce(int) {}
