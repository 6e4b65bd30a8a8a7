package kit

import (
	"bytes"
	"runtime"
	"time"
)

// Parked returns when this many goroutines wait for the network or a pipe. A goroutine that is shown in
// this state is already in its pollDesc, because the world is stopped for the traceback.
func Parked(n int) {
	for stacks := make([]byte, 64<<10); ; time.Sleep(100 * time.Microsecond) {
		if bytes.Count(stacks[:runtime.Stack(stacks, true)], []byte("[IO wait")) >= n {
			return
		}
	}
}
