// Command server is the service that the benchmark watches: small HTTP responses, Go's own profiles and
// execution trace, and at /micro the time that single operations take.
package main

import (
	"encoding/json"
	"flag"
	"io"
	"log"
	"net/http"
	_ "net/http/pprof"
	"time"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:7000", "address to serve on")
	flag.Parse()
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello\n") })
	http.HandleFunc("/micro", serveMicro)
	log.Fatal(http.ListenAndServe(*addr, nil))
}

// serveMicro answers [{name, ns}]; ?each=50ms is how long each operation is run.
func serveMicro(w http.ResponseWriter, r *http.Request) {
	each, err := time.ParseDuration(r.FormValue("each"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	json.NewEncoder(w).Encode(micro(each))
}
