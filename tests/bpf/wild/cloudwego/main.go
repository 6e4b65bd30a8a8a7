// cloudwego/netpoll's own epoll loops answer HTTP on -addr; net/http answers on -http,
// through the runtime's poller. Only the latter's wakeups are counted.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"

	"github.com/cloudwego/netpoll"
)

var (
	end    = []byte("\r\n\r\n")
	answer = []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
)

func serve(_ context.Context, c netpoll.Connection) error {
	r, w := c.Reader(), c.Writer()
	for {
		buf, err := r.Peek(r.Len())
		if err != nil {
			return err
		}
		i := bytes.Index(buf, end)
		if i < 0 {
			return w.Flush()
		}
		if err := r.Skip(i + len(end)); err != nil {
			return err
		}
		if _, err := w.WriteBinary(answer); err != nil {
			return err
		}
	}
}

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address of cloudwego's loops")
	own := flag.String("http", "127.0.0.1:0", "address of net/http")
	flag.Parse()
	h, err := net.Listen("tcp", *own)
	if err != nil {
		log.Fatal(err)
	}
	go http.Serve(h, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok")) }))
	l, err := netpoll.CreateListener("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	loop, err := netpoll.NewEventLoop(serve)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("ready")
	log.Fatal(loop.Serve(l))
}
