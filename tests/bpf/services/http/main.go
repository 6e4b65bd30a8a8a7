// net/http with a small body at "/"; with -tls HTTP/2 (and 1.1) and a self-signed
// certificate. True numbers: each spaced request on a kept-alive connection = one
// productive read wakeup. HTTP/1.1 adds at most one deadline wakeup: the background read that watches for a
// vanished client is aborted with a deadline in the past. It got EAGAIN, and so does the read that follows:
// two in a row that aren't stale retries.
package main

import (
	"flag"
	"io"
	"log"
	"net/http"

	"services/kit"
	"services/kit/selfsigned"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	secure := flag.Bool("tls", false, "HTTPS")
	flag.Parse()
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello\n") })
	l := kit.Listen(*addr)
	if *secure {
		s := http.Server{TLSConfig: selfsigned.TLS("h2", "http/1.1")}
		log.Fatal(s.ServeTLS(l, "", ""))
	}
	log.Fatal(http.Serve(l, nil))
}
