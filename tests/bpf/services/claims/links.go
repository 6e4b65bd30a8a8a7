package main

import (
	"io"
	"math/rand"
	"net"
	"time"
)

const shortest, longest = 40 * time.Millisecond, 640 * time.Millisecond

// hold keeps a connection to the upstream. What it does when the connection is dead:
//
//	never    nothing: it does not even look
//	now      closes it and dials again without a pause, until that succeeds
//	backoff  the same, but before each try it waits for a random part of 40 ms, doubled after each failure up
//	         to 640 ms, so that clients who lost their connections together do not come back together
func hold(upstream, redial string) {
	wait := shortest
	for {
		c, err := net.Dial("tcp", upstream)
		if err == nil {
			if redial == "never" {
				select {}
			}
			wait = shortest
			io.Copy(io.Discard, c)
			c.Close()
		}
		if redial == "backoff" {
			time.Sleep(time.Duration(rand.Int63n(int64(wait))))
			if wait *= 2; wait > longest {
				wait = longest
			}
		}
	}
}
