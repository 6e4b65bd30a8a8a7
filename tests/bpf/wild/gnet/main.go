// gnet's own epoll loops answer HTTP on -addr; net/http answers on -http, through the
// runtime's poller. Only the latter's wakeups are counted.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"

	"github.com/panjf2000/gnet/v2"
)

var (
	end    = []byte("\r\n\r\n")
	answer = []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
)

type server struct {
	gnet.BuiltinEventEngine
	ready string
}

func (s *server) OnBoot(gnet.Engine) gnet.Action {
	fmt.Println(s.ready)
	return gnet.None
}

func (*server) OnTraffic(c gnet.Conn) gnet.Action {
	for {
		buf, _ := c.Peek(-1)
		i := bytes.Index(buf, end)
		if i < 0 {
			return gnet.None
		}
		c.Discard(i + len(end))
		c.Write(answer)
	}
}

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address of gnet's loops")
	own := flag.String("http", "127.0.0.1:0", "address of net/http")
	flag.Parse()
	l, err := net.Listen("tcp", *own)
	if err != nil {
		log.Fatal(err)
	}
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok")) }))
	log.Fatal(gnet.Run(&server{ready: "ready"}, "tcp://"+*addr, gnet.WithMulticore(true)))
}
