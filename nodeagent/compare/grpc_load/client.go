package main

import (
	"context"
	"encoding/json"
	"flag"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const service = "/load.Load/"

var both = &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}

func dial(target string) (*grpc.ClientConn, error) {
	limits := grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(longest), grpc.MaxCallSendMsgSize(longest))
	return grpc.NewClient("passthrough:///"+target, grpc.WithTransportCredentials(insecure.NewCredentials()), limits)
}

// worker is one caller of a closed loop: what it got, and how long each took in µs.
type worker struct {
	answered, failed int
	took             []int32
}

func (w *worker) calls(ctx context.Context, connection *grpc.ClientConn, message []byte) {
	for ctx.Err() == nil {
		var reply []byte
		began := time.Now()
		if err := connection.Invoke(ctx, service+"Echo", &message, &reply); err == nil {
			w.answered++
			w.took = append(w.took, int32(time.Since(began).Microseconds()))
		} else if ctx.Err() == nil {
			w.failed++
		}
	}
}

func (w *worker) receives(ctx context.Context, connection *grpc.ClientConn, size int) {
	request := []byte("0 " + strconv.Itoa(size))
	for ctx.Err() == nil {
		stream, err := begun(ctx, connection, "Count", request)
		for err == nil {
			var message []byte
			if err = stream.RecvMsg(&message); err == nil {
				w.answered++
			}
		}
		if ctx.Err() == nil {
			w.failed++
		}
	}
}

// begun sends one message to a method that streams.
func begun(ctx context.Context, connection *grpc.ClientConn, method string, message []byte) (grpc.ClientStream, error) {
	stream, err := connection.NewStream(ctx, both, service+method)
	if err != nil {
		return nil, err
	}
	if err := stream.SendMsg(&message); err != nil && err != io.EOF {
		return nil, err
	}
	return stream, stream.CloseSend()
}

func load(arguments []string) error {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	target := flags.String("target", "", "address:port")
	kind := flags.String("kind", "unary", "unary or stream")
	connections := flags.Int("connections", 1, "")
	streams := flags.Int("streams", 32, "calls at a time on each connection")
	seconds := flags.Float64("seconds", 2, "")
	size := flags.Int("size", 64, "bytes of a message")
	told := flags.String("percentiles", "50,99,100", "of which latencies")
	_ = flags.Parse(arguments)
	// Cancelled, not a deadline: that would go with each call, and end it at the server a moment earlier.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	time.AfterFunc(time.Duration(*seconds*float64(time.Second)), cancel)
	workers := make([]worker, *connections**streams)
	message := make([]byte, *size)
	var group sync.WaitGroup
	began := time.Now()
	for place := 0; place < *connections; place++ {
		connection, err := dial(*target)
		if err != nil {
			return err
		}
		defer connection.Close()
		for each := 0; each < *streams; each++ {
			one := &workers[place**streams+each]
			group.Go(func() {
				if *kind == "stream" {
					one.receives(ctx, connection, *size)
				} else {
					one.calls(ctx, connection, message)
				}
			})
		}
	}
	group.Wait()
	elapsed := time.Since(began).Microseconds()
	var took []int32
	answered, failed := 0, 0
	for _, one := range workers {
		answered += one.answered
		failed += one.failed
		took = append(took, one.took...)
	}
	slices.Sort(took)
	latencies := []int32{}
	for _, text := range strings.Split(*told, ",") {
		percentile, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return err
		}
		if len(took) > 0 {
			latencies = append(latencies, took[int(percentile/100*float64(len(took)-1))])
		}
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"requests": answered, "microseconds": elapsed, "errors": failed, "latencies": latencies})
}

// call makes single calls, each of which sends -data so often as -messages says, and counts what came back.
func call(arguments []string) error {
	flags := flag.NewFlagSet("call", flag.ExitOnError)
	target := flags.String("target", "", "address:port")
	method := flags.String("method", "Echo", "")
	data := flags.String("data", "", "what each message says")
	size := flags.Int("size", 0, "or of how many bytes it is")
	messages := flags.Int("messages", 1, "to be sent in a call")
	calls := flags.Int("calls", 1, "0: until standard input ends")
	parallel := flags.Int("parallel", 1, "calls at a time, all on one connection")
	take := flags.Int("take", 0, "cancel after so many answers; 0: never")
	deadline := flags.Duration("deadline", 0, "")
	pause := flags.Duration("pause", 0, "between two calls")
	fields := flags.String("fields", "", "metadata: name=value,…")
	full := flags.Bool("full", false, "the method's whole name is given")
	_ = flags.Parse(arguments)
	message := []byte(*data)
	if *size > 0 {
		message = make([]byte, *size)
	}
	path := service + *method
	if *full {
		path = *method
	}
	connection, err := dial(*target)
	if err != nil {
		return err
	}
	defer connection.Close()
	var mutex sync.Mutex
	codes, answers, words := map[string]int{}, map[string]int{}, map[string]int{}
	var head, trailer metadata.MD
	received := 0
	one := func() {
		ctx := context.Background()
		if *deadline > 0 {
			limited, cancel := context.WithTimeout(ctx, *deadline)
			defer cancel()
			ctx = limited
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		for _, pair := range strings.Split(*fields, ",") {
			if name, value, found := strings.Cut(pair, "="); found {
				ctx = metadata.AppendToOutgoingContext(ctx, name, value)
			}
		}
		got, last, err := 0, []byte(nil), error(nil)
		stream, err := connection.NewStream(ctx, both, path)
		for sent := 0; err == nil && sent < *messages; sent++ {
			err = stream.SendMsg(&message)
		}
		if err == nil || err == io.EOF {
			err = stream.CloseSend()
		}
		for err == nil {
			var reply []byte
			if err = stream.RecvMsg(&reply); err == nil {
				got, last = got+1, reply
			}
			if *take > 0 && got == *take {
				cancel()
			}
		}
		mutex.Lock()
		defer mutex.Unlock()
		if err == io.EOF {
			err = nil
		}
		if stream != nil {
			head, _ = stream.Header()
			trailer = stream.Trailer()
		}
		codes[status.Code(err).String()]++
		words[status.Convert(err).Message()]++
		received += got
		if len(last) > 0 && len(last) < 4096 {
			answers[string(last)]++
		}
	}
	var group sync.WaitGroup
	work := make(chan bool)
	for range *parallel {
		group.Go(func() {
			for range work {
				one()
				time.Sleep(*pause)
			}
		})
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if *calls == 0 {
			_, _ = io.Copy(io.Discard, os.Stdin)
		}
	}()
	for made := 0; *calls == 0 || made < *calls; made++ {
		if *calls > 0 {
			work <- true
			continue
		}
		select {
		case work <- true:
		case <-ended:
			*calls = made
		}
	}
	close(work)
	group.Wait()
	delete(words, "")
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"codes": codes, "answers": answers, "words": words,
		"messages": received, "head": head, "trailer": trailer})
}
