// fasthttp's prefork: one process per CPU. With -reuseport each has its own listener; without it, all of them
// accept from the one listener that they inherited, and each connection wakes them all.
package main

import (
	"flag"
	"log"

	"github.com/valyala/fasthttp"
	"github.com/valyala/fasthttp/prefork"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	reuseport := flag.Bool("reuseport", false, "a listener a process")
	flag.Parse()
	s := &fasthttp.Server{Handler: func(c *fasthttp.RequestCtx) { c.WriteString("ok") }}
	p := prefork.New(s)
	p.Reuseport = *reuseport
	log.Fatal(p.ListenAndServe(*addr))
}
