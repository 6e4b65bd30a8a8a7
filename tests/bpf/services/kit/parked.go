package kit

import (
	"bytes"
	"runtime"
	"time"
)

// Parked returns when so many goroutines wait for the network or a pipe. Who is shown in this
// state is already in its pollDesc: the world stands still meanwhile.
func Parked(n int) {
	for stacks := make([]byte, 64<<10); ; time.Sleep(100 * time.Microsecond) {
		if bytes.Count(stacks[:runtime.Stack(stacks, true)], []byte("[IO wait")) >= n {
			return
		}
	}
}
