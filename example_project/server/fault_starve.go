package main

import (
	"crypto/sha256"
	"runtime"
)

// Done: the container is limited to one CPU, so GOMAXPROCS is 1, and a background
// job moves the stored passwords to a costlier hash on four goroutines.
//
// Seen: every wakeup is productive, but a woken reader queues behind the job's
// goroutines, 10 ms each: wake-to-run latency is tens of ms, and so is the latency
// that clients see. CPU profiles show only the hashing.
//
// Fix: use fewer workers than CPUs and small portions, or another process for the job.
func startRehash() {
	runtime.GOMAXPROCS(1)
	for i := 0; i < 4; i++ {
		go func() {
			sum := sha256.Sum256([]byte("correct horse battery staple"))
			for {
				sum = sha256.Sum256(sum[:])
			}
		}()
	}
}
