// HTTP server of one file through sendfile(2). True numbers: each spaced request =
// one productive read wakeup, as in http; and where the file exceeds the socket
// buffers (a few MB), one write wakeup or more, each productive, resolved by sendfile
// with the socket as its target. How many depends on how the client reads,
// and whether there are stale retries on the write side: room made while sendfile
// copies is an event stored.
package main

import (
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	size := flag.Int64("size", 1<<20, "bytes in the file")
	flag.Parse()
	f, err := os.CreateTemp("", "sendfile")
	kit.Must(err)
	kit.Must(os.Remove(f.Name())) // so that nothing is left behind, even after SIGKILL
	kit.Must(f.Truncate(*size))
	again := fmt.Sprintf("/proc/self/fd/%d", f.Fd())

	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		body, err := os.Open(again) // with its own offset
		kit.Must(err)
		defer body.Close()
		http.ServeContent(w, r, "body.bin", time.Time{}, body)
	})
	log.Fatal(http.Serve(kit.Listen(*addr), nil))
}
