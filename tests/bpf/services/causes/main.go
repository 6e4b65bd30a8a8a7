// Services with one fault each, or none, for the rules. A command "N" runs -do for N ms, and answers "done":
//
//	errqueue  echoes over UDP on the same port. The socket asks for transmit timestamps, and nobody reads them:
//	          each answer wakes the reader for nothing. It needs no command.
//	errread   the same, but the sender reads each timestamp: its reader is woken just as often.
//	errapart  the same, from another socket, on which nobody waits.
//	plain     as errqueue, without timestamps.
//	unixgram  four senders share one Unix datagram socket whose receiver takes one message per millisecond.
//	refused   sends a datagram every 2 ms to a port where nobody listens; the goroutine that waits for the answer
//	          sends a datagram first, and so gets the refusal that woke it.
//	select    a loop checks whether it should end, with a select with a default. It uses a CPU.
//	compute   a loop computes, and checks now and then whether it should end. It uses a CPU.
//	hub       sends a message to each of 1000 subscribers, with a select with a default; when all have it, the next.
//	pipeline  passes numbers through a channel to a goroutine that takes all there are, then waits.
//	cancel    computes for 50 µs, checks without waiting whether the client has left, and so on.
//	gc        a loop allocates, beside a million live pointers, with GOGC=5.
//	yield     from the start, four goroutines compute for 50 µs and yield, forever.
//	spin      from the start, eight goroutines compute forever.
//	kernel    from the start, eight threads are in long system calls forever; a command computes for N µs.
//	batch     each read waits for 10 ms for more to read with one call, beside a goroutine that computes forever.
//	thief     another thread, which waits with poll(2), also accepts from the listener, and closes what it gets.
//	twice     waits for connections at two registrations of one listener; after the first command with N > 0, at one.
//	locked    answers a command from a goroutine that is locked to its thread.
//	beside    answers from an unlocked goroutine, beside a locked one that waits for a connection that never comes.
//	worker    a locked goroutine answers what others pass to it through a channel.
//	nagle     answers in two writes, without TCP_NODELAY. N ms are between them.
//	nodelay   the same with TCP_NODELAY.
//	pacer     writes a byte each millisecond.
//	late      reads only what has come already: it waits for that with poll(2), past the runtime's poller.
//	evict     keeps N connections of its own; if N is 0, it closes each of them when it has been idle for 100 ms
//	          to 400 ms more.
//	expire    keeps N entries, each of which a callback removes after 100 ms to 400 ms.
//	free      collects a million live pointers, and returns free memory to the system.
//	packets   sends itself N times ten messages of 8 bytes, and reads each as a whole (SOCK_SEQPACKET).
//	nonblock  answers what it reads without ever waiting for it.
//	bulk      reads the N KiB that follow, except for at most the last 8, 512 bytes at a time.
package main

import (
	"flag"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"services/kit"
)

// By the machine.
var sysGetrandom, sysPpoll = map[string]uintptr{"amd64": 318, "arm64": 278}[runtime.GOARCH],
	map[string]uintptr{"amd64": 271, "arm64": 73}[runtime.GOARCH]

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	do := flag.String("do", "plain", "the fault")
	flag.Parse()
	l := kit.Bind(*addr)
	begin := func(net.Conn, int) {}
	switch *do {
	case "errqueue", "errread", "errapart", "plain":
		echo(l.Addr().String(), *do)
	case "unixgram":
		begin = unixgram()
	case "refused":
		begin = refused()
	case "select", "compute":
		begin = func(_ net.Conn, n int) {
			end := make(chan bool)
			time.AfterFunc(time.Duration(n)*time.Millisecond, func() { close(end) })
			if *do == "select" {
				look(end)
			} else {
				compute(end)
			}
		}
	case "hub":
		begin = newHub(1000)
	case "pipeline":
		begin = pipeline
	case "cancel":
		begin = cancellable
	case "gc":
		debug.SetGCPercent(5)
		begin = allocate
	case "yield", "spin":
		begin = func(_ net.Conn, n int) { time.Sleep(time.Duration(n) * time.Millisecond) }
		go crowd(*do == "yield")
	case "kernel":
		begin = func(_ net.Conn, n int) {
			for t := time.Now(); time.Since(t) < time.Duration(n)*time.Microsecond; {
			}
		}
		for i := 0; i < 8; i++ {
			go inKernel()
		}
	case "batch":
		go compute(nil)
		kit.Ready(l)
		kit.Serve(l, batch)
	case "thief":
		go steal(l)
	case "twice":
		other := duplicate(l)
		begin = func(_ net.Conn, n int) {
			if n > 0 {
				other.Close()
			}
		}
		go kit.Commands(patient{other}, func(c net.Conn, n int) string {
			begin(c, n)
			return "done"
		})
	case "locked":
		begin = func(net.Conn, int) { runtime.LockOSThread() }
	case "beside":
		go func() {
			runtime.LockOSThread()
			other, err := net.Listen("tcp", "127.0.0.1:0")
			kit.Must(err)
			other.Accept()
		}()
	case "worker":
		begin = worker()
	case "nagle", "nodelay":
		begin = func(c net.Conn, n int) {
			kit.Must(c.(*net.TCPConn).SetNoDelay(*do == "nodelay"))
			_, err := c.Write([]byte("it is "))
			kit.Must(err)
			time.Sleep(time.Duration(n) * time.Millisecond)
		}
	case "pacer":
		begin = func(c net.Conn, n int) {
			t := time.NewTicker(time.Millisecond)
			defer t.Stop()
			for ; n > 0; n-- {
				<-t.C
				_, err := c.Write([]byte("."))
				kit.Must(err)
			}
		}
	case "evict":
		own, err := net.Listen("tcp", "127.0.0.1:0")
		kit.Must(err)
		begin = evict(own)
	case "expire":
		begin = func(_ net.Conn, n int) {
			var left sync.WaitGroup
			left.Add(n)
			for i := 0; i < n; i++ {
				time.AfterFunc(staggered(i, n), left.Done)
			}
			left.Wait()
		}
	case "free":
		live := make([]*node, 1_000_000)
		for i := range live {
			live[i] = new(node)
		}
		begin = func(net.Conn, int) {
			debug.FreeOSMemory()
			runtime.KeepAlive(live)
		}
	case "packets":
		begin = packets()
	case "nonblock":
		kit.Ready(l)
		kit.Serve(l, nonblock)
	case "bulk":
		begin = bulk
	}
	kit.Ready(l)
	var listener net.Listener = l
	if *do == "late" {
		listener = late{l}
	}
	kit.Commands(listener, func(c net.Conn, n int) string {
		begin(c, n)
		return "done"
	})
}

func echo(addr, do string) {
	c, err := net.ListenPacket("udp", addr)
	kit.Must(err)
	sender := c
	if do == "errapart" {
		sender, err = net.ListenPacket("udp", "127.0.0.1:0")
		kit.Must(err)
	}
	raw, err := sender.(*net.UDPConn).SyscallConn()
	kit.Must(err)
	if do != "plain" {
		raw.Control(func(fd uintptr) {
			const txSoftware, software, tsOnly = 1 << 1, 1 << 4, 1 << 11
			how := txSoftware | software | tsOnly
			kit.Must(syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_TIMESTAMPING, how))
		})
	}
	type message struct {
		data []byte
		to   net.Addr
	}
	answers := make(chan message, 100)
	go func() {
		for m := range answers {
			time.Sleep(500 * time.Microsecond) // the reader has parked again
			sender.WriteTo(m.data, m.to)
			if do == "errread" || do == "errapart" {
				time.Sleep(200 * time.Microsecond) // the reader's poll has returned
				raw.Control(readErrors)
			}
		}
	}()
	go func() {
		for {
			buf := make([]byte, 64)
			n, from, err := c.ReadFrom(buf)
			kit.Must(err)
			answers <- message{buf[:n], from}
		}
	}()
}

func readErrors(fd uintptr) {
	for data, about := make([]byte, 256), make([]byte, 256); ; {
		if _, _, _, _, err := syscall.Recvmsg(int(fd), data, about, syscall.MSG_ERRQUEUE); err != nil {
			return
		}
	}
}

func unixgram() func(net.Conn, int) {
	dir, err := os.MkdirTemp("", "causes")
	kit.Must(err)
	defer os.RemoveAll(dir) // when the senders have connected
	at := &net.UnixAddr{Name: filepath.Join(dir, "socket"), Net: "unixgram"}
	receiver, err := net.ListenUnixgram("unixgram", at)
	kit.Must(err)
	go func() {
		for buf := make([]byte, 64); ; time.Sleep(time.Millisecond) {
			_, err := receiver.Read(buf)
			kit.Must(err)
		}
	}()
	senders := make([]*net.UnixConn, 4)
	for i := range senders {
		senders[i], err = net.DialUnix("unixgram", nil, at)
		kit.Must(err)
	}
	return func(_ net.Conn, n int) {
		end := time.Now().Add(time.Duration(n) * time.Millisecond)
		done := make(chan bool)
		for _, c := range senders {
			c := c
			go func() {
				for time.Now().Before(end) {
					_, err := c.Write([]byte("message"))
					kit.Must(err)
				}
				done <- true
			}()
		}
		for range senders {
			<-done
		}
	}
}

func refused() func(net.Conn, int) {
	nobody, err := net.ListenPacket("udp", "127.0.0.1:0")
	kit.Must(err)
	c, err := net.Dial("udp", nobody.LocalAddr().String())
	kit.Must(err)
	nobody.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	kit.Must(err)
	word := []byte("word")
	go func() {
		for { // the reader may get a refusal itself
			woken := false
			raw.Read(func(fd uintptr) bool {
				if woken {
					syscall.Write(int(fd), word)
				}
				woken = true
				_, err := syscall.Read(int(fd), make([]byte, 64))
				return err != syscall.EAGAIN
			})
		}
	}()
	return func(_ net.Conn, n int) {
		for ; n > 0; n -= 2 {
			raw.Control(func(fd uintptr) { syscall.Write(int(fd), word) })
			time.Sleep(2 * time.Millisecond)
		}
	}
}

//go:noinline
func look(end chan bool) {
	for {
		select {
		case <-end:
			return
		default:
		}
	}
}

var sink uint64

//go:noinline
func compute(end chan bool) {
	for x := uint64(1); ; {
		for i := 0; i < 100_000; i++ {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
		}
		sink = x
		select {
		case <-end:
			return
		default:
		}
	}
}

// Each subscriber has room for a message before it is sent.
func newHub(subscribers int) func(net.Conn, int) {
	var received sync.WaitGroup
	channels := make([]chan int, subscribers)
	for i := range channels {
		c := make(chan int, 1)
		channels[i] = c
		go func() {
			for range c {
				received.Done()
			}
		}()
	}
	return func(_ net.Conn, n int) {
		for end := time.Now().Add(time.Duration(n) * time.Millisecond); time.Now().Before(end); received.Wait() {
			received.Add(subscribers)
			broadcast(channels)
		}
	}
}

//go:noinline
func broadcast(channels []chan int) {
	for _, c := range channels {
		select {
		case c <- 1:
		default:
			panic("a message was lost")
		}
	}
}

func pipeline(_ net.Conn, n int) {
	numbers, done := make(chan uint64, 1024), make(chan bool)
	go func() {
		for x := range numbers {
			sink += x + drain(numbers)
		}
		done <- true
	}()
	for end := time.Now().Add(time.Duration(n) * time.Millisecond); time.Now().Before(end); {
		for i := uint64(0); i < 1000; i++ {
			numbers <- i
		}
	}
	close(numbers)
	<-done
}

//go:noinline
func drain(numbers chan uint64) (sum uint64) {
	for {
		select {
		case x, ok := <-numbers:
			if !ok {
				return
			}
			sum += x
		default:
			return
		}
	}
}

func cancellable(c net.Conn, n int) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	kit.Must(err)
	for end := time.Now().Add(time.Duration(n) * time.Millisecond); time.Now().Before(end); {
		for t := time.Now(); time.Since(t) < 50*time.Microsecond; {
		}
		kit.Must(raw.Control(func(fd uintptr) {
			syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		}))
	}
}

type node struct{ next *node }

func allocate(_ net.Conn, n int) {
	live := make([]*node, 1_000_000)
	for i := range live {
		live[i] = new(node)
	}
	for i, end := 0, time.Now().Add(time.Duration(n)*time.Millisecond); time.Now().Before(end); i++ {
		for j := 0; j < 1000; j++ {
			live[(i*1000+j)%len(live)] = new(node)
		}
	}
	runtime.KeepAlive(live)
}

func crowd(yields bool) {
	goroutines := 8
	if yields {
		goroutines = 4
	}
	for i := 0; i < goroutines; i++ {
		go func() {
			for {
				for t := time.Now(); time.Since(t) < 50*time.Microsecond; {
				}
				if yields {
					runtime.Gosched()
				}
			}
		}()
	}
}

// The readers run at once, but read late.
func batch(c net.Conn) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	kit.Must(err)
	for data, n := make([]byte, 64), 1; n > 0; c.Write([]byte("done\n")) {
		woken := false
		raw.Read(func(fd uintptr) bool {
			if woken {
				time.Sleep(10 * time.Millisecond)
			}
			woken = true
			n, err = syscall.Read(int(fd), data)
			return err != syscall.EAGAIN
		})
	}
}

// It has a thread, but no P.
func inKernel() {
	for noise := make([]byte, 8<<20); ; {
		_, _, e := syscall.Syscall(sysGetrandom, uintptr(unsafe.Pointer(&noise[0])), uintptr(len(noise)), 0)
		if e != 0 {
			kit.Must(e)
		}
	}
}

func steal(l *net.TCPListener) {
	raw, err := l.SyscallConn()
	kit.Must(err)
	fd := -1
	raw.Control(func(own uintptr) { fd, err = syscall.Dup(int(own)) })
	kit.Must(err)
	runtime.LockOSThread()
	syscall.Setpriority(syscall.PRIO_PROCESS, 0, -20) // of this thread: it runs before the poller's
	for {
		await(fd)
		if got, _, err := syscall.Accept4(fd, syscall.SOCK_CLOEXEC); err == nil {
			syscall.Close(got)
		}
	}
}

// await blocks a thread until there is something to read.
func await(fd int) {
	p := struct {
		fd              int32
		events, revents int16
	}{fd: int32(fd), events: 1}
	for ready := uintptr(0); ready != 1; {
		ready, _, _ = syscall.Syscall6(sysPpoll, uintptr(unsafe.Pointer(&p)), 1, 0, 0, 0, 0)
	}
}

func duplicate(l *net.TCPListener) net.Listener {
	f, err := l.File()
	kit.Must(err)
	defer f.Close()
	other, err := net.FileListener(f)
	kit.Must(err)
	return other
}

// patient waits for ever once it is closed.
type patient struct{ net.Listener }

func (l patient) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		select {}
	}
	return c, nil
}

// late keeps its connections' readers from waiting.
type late struct{ net.Listener }

type lateConn struct {
	net.Conn
	fd int
}

func (l late) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	kit.Must(err)
	raw, err := c.(*net.TCPConn).SyscallConn()
	kit.Must(err)
	conn := lateConn{Conn: c}
	raw.Control(func(fd uintptr) { conn.fd = int(fd) })
	return conn, nil
}

func (c lateConn) Read(b []byte) (int, error) {
	await(c.fd)
	return c.Conn.Read(b)
}

func worker() func(net.Conn, int) {
	jobs, done := make(chan int), make(chan bool)
	go func() {
		runtime.LockOSThread()
		for range jobs {
			done <- true
		}
	}()
	return func(_ net.Conn, n int) {
		jobs <- n
		<-done
	}
}

func bulk(c net.Conn, n int) {
	buf := make([]byte, 512)
	for left := (n - 8) << 10; left > 0; { // some of them came with the command
		read, err := c.Read(buf)
		if err == io.EOF {
			return
		}
		kit.Must(err)
		left -= read
	}
}

// When the i-th of n comes.
func staggered(i, n int) time.Duration {
	return 100*time.Millisecond + 300*time.Millisecond*time.Duration(i)/time.Duration(n)
}

func evict(l net.Listener) func(net.Conn, int) {
	var idle []net.Conn
	var left sync.WaitGroup
	keep := func() {
		// The poller doesn't know it, so its end is no event.
		client, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
		kit.Must(err)
		at := &syscall.SockaddrInet4{Port: l.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}
		kit.Must(syscall.Connect(client, at))
		c, err := l.Accept()
		kit.Must(err)
		idle = append(idle, c)
		go func() {
			c.Read(make([]byte, 1))
			c.Close()
			syscall.Close(client)
			left.Done()
		}()
	}
	return func(_ net.Conn, n int) {
		left.Add(n)
		for i := 0; i < n; i++ {
			keep()
		}
		if n == 0 {
			for i, c := range idle {
				kit.Must(c.SetReadDeadline(time.Now().Add(staggered(i, len(idle)))))
			}
			left.Wait()
		}
	}
}

func packets() func(net.Conn, int) {
	dir, err := os.MkdirTemp("", "causes")
	kit.Must(err)
	defer os.RemoveAll(dir) // when it has connected
	l, err := net.Listen("unixpacket", filepath.Join(dir, "socket"))
	kit.Must(err)
	sender, err := net.Dial("unixpacket", l.Addr().String())
	kit.Must(err)
	receiver, err := l.Accept()
	kit.Must(err)
	return func(_ net.Conn, n int) {
		message := make([]byte, 8)
		for ; n > 0; n-- {
			for i := 0; i < 10; i++ {
				_, err := sender.Write(message)
				kit.Must(err)
			}
			for i := 0; i < 10; i++ {
				_, err := receiver.Read(message)
				kit.Must(err)
			}
		}
	}
}

func nonblock(c net.Conn) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	kit.Must(err)
	for data, n := make([]byte, 64), 1; n != 0; {
		raw.Control(func(fd uintptr) { n, err = syscall.Read(int(fd), data) })
		if n > 0 {
			c.Write([]byte("done\n"))
		}
	}
}
