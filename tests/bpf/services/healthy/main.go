// What healthy programs do with I/O calls that find nothing. A command "KIND N" runs a kind N times, servers and
// clients in this process, and answers "done". True number of futile calls: 0 for each kind. I/O calls at least:
//
//	kind        N times                                                              I/O calls
//	http        a request over one kept-alive connection                             4 N
//	http2       8 requests at once over one connection                               2 N
//	tls         a message and its echo over one connection                           4 N
//	query       check that a connection still lives, as database drivers do, query   5 N
//	deadline    wait 250 ms for a datagram that does not come                        N
//	idle        a request, then the server closes the idle connection after 20 ms    4 N
//	slow        a request that does not come; the server gives up after 20 ms        N
//	backoff     accept while there is no free descriptor, until there is one         N
package main

import (
	"bufio"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"syscall"
	"time"

	"services/kit"
	"services/kit/selfsigned"
)

const patience = 20 * time.Millisecond

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	flag.Parse()
	log.SetOutput(io.Discard) // net/http complains that it gets no descriptors
	kinds := map[string]func(int){
		"http": overHTTP, "http2": overHTTP2, "tls": overTLS, "query": query,
		"deadline": deadline, "idle": idle, "slow": slow, "backoff": backoff,
	}
	kit.Serve(kit.Listen(*addr), func(c net.Conn) {
		for lines := bufio.NewScanner(c); lines.Scan(); {
			var kind string
			var n int
			_, err := fmt.Sscan(lines.Text(), &kind, &n)
			must(err)
			kinds[kind](n)
			fmt.Fprintln(c, "done")
		}
	})
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(configure func(*httptest.Server)) *httptest.Server {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(w, r.Body)
		fmt.Fprintln(w, r.Proto)
	}))
	configure(server)
	return server
}

func get(server *httptest.Server) {
	answer, err := server.Client().Get(server.URL)
	must(err)
	_, err = io.Copy(io.Discard, answer.Body)
	must(err)
	answer.Body.Close()
}

func overHTTP(n int) {
	server := serve((*httptest.Server).Start)
	defer server.Close()
	for ; n > 0; n-- {
		get(server)
	}
}

func overHTTP2(n int) {
	server := serve(func(s *httptest.Server) {
		s.EnableHTTP2 = true
		s.StartTLS()
	})
	defer server.Close()
	for ; n > 0; n-- {
		var all sync.WaitGroup
		for i := 0; i < 8; i++ {
			all.Add(1)
			go func() {
				defer all.Done()
				get(server)
			}()
		}
		all.Wait()
	}
}

// connected returns both ends of a TCP connection.
func connected() (near, far net.Conn) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	defer listener.Close()
	near, err = net.Dial("tcp", listener.Addr().String())
	must(err)
	far, err = listener.Accept()
	must(err)
	return near, far
}

func exchange(c net.Conn) {
	message := []byte("ping\n")
	_, err := c.Write(message)
	must(err)
	_, err = io.ReadFull(c, message)
	must(err)
}

func overTLS(n int) {
	near, far := connected()
	defer near.Close()
	go kit.Echo(tls.Server(far, selfsigned.TLS()))
	client := tls.Client(near, &tls.Config{InsecureSkipVerify: true})
	for ; n > 0; n-- {
		exchange(client)
	}
}

// query does what a database driver does: connCheck of go-sql-driver/mysql, then the query.
func query(n int) {
	near, far := connected()
	defer near.Close()
	go kit.Echo(far)
	raw, err := near.(*net.TCPConn).SyscallConn()
	must(err)
	for ; n > 0; n-- {
		var b [1]byte
		var found error
		err := raw.Read(func(fd uintptr) bool {
			_, found = syscall.Read(int(fd), b[:])
			return true
		})
		must(err)
		if found != syscall.EAGAIN {
			must(fmt.Errorf("the connection is not idle: %v", found))
		}
		exchange(near)
	}
}

func deadline(n int) {
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(err)
	defer socket.Close()
	var b [1]byte
	for ; n > 0; n-- {
		must(socket.SetReadDeadline(time.Now().Add(250 * time.Millisecond)))
		if _, _, err := socket.ReadFrom(b[:]); !os.IsTimeout(err) {
			must(fmt.Errorf("no timeout: %v", err))
		}
	}
}

// ended reads until the server closes the connection.
func ended(c net.Conn) {
	io.Copy(io.Discard, c)
	c.Close()
}

func idle(n int) {
	server := serve(func(s *httptest.Server) {
		s.Config.IdleTimeout = patience
		s.Start()
	})
	defer server.Close()
	for ; n > 0; n-- {
		c, err := net.Dial("tcp", server.Listener.Addr().String())
		must(err)
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
		ended(c)
	}
}

func slow(n int) {
	server := serve(func(s *httptest.Server) {
		s.Config.ReadTimeout = patience
		s.Start()
	})
	defer server.Close()
	for ; n > 0; n-- {
		c, err := net.Dial("tcp", server.Listener.Addr().String())
		must(err)
		ended(c)
	}
}

// backoff has net/http's server accept while the process can't open descriptors: it retries after 5 ms, 10
// ms, 20 ms, …
func backoff(n int) {
	server := serve((*httptest.Server).Start)
	defer server.Close()
	address := server.Listener.Addr().(*net.TCPAddr)
	for ; n > 0; n-- {
		c, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		must(err)
		var limit syscall.Rlimit
		must(syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
		must(syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 0, Max: limit.Max}))
		must(syscall.Connect(c, &syscall.SockaddrInet4{Port: address.Port, Addr: [4]byte{127, 0, 0, 1}}))
		time.Sleep(100 * time.Millisecond)
		must(syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit))
		request := []byte("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
		_, err = syscall.Write(c, request)
		must(err)
		for more := 1; more > 0; {
			more, err = syscall.Read(c, request)
			must(err)
		}
		syscall.Close(c)
	}
}
